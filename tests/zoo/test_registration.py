from __future__ import annotations

from sb3_ppo_ext_zoo import register

from sb3_ppo_ext import PPOX


def test_ppox_is_in_every_table_and_the_rest_is_untouched() -> None:
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    tables = (ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER)
    before = [{name: entry for name, entry in table.items() if name != "ppox"} for table in tables]
    register()
    once = [dict(table) for table in tables]
    register()
    assert [dict(table) for table in tables] == once
    assert [set(now) - set(then) for now, then in zip(once, before, strict=True)] == [{"ppox"}] * 3
    assert all(now[name] is entry for now, then in zip(once, before, strict=True) for name, entry in then.items())
    assert ALGOS["ppox"] is PPOX
