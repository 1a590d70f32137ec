"""What the commands do: a module for each, or for two that belong together."""
