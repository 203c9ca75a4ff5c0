"""Machine presets: data files, each figure with its source."""
