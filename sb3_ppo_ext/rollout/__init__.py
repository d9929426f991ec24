"""From the environment to minibatches: collection, buffers, advantages."""
