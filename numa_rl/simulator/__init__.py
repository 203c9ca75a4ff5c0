"""The analytical backend: state, kernel, simulator."""
