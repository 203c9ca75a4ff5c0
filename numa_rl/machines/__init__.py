"""Reading machines: presets by name, and files."""
