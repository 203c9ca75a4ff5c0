"""How far the simulator is from an independent one."""
