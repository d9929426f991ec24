"""The update over tokens."""
