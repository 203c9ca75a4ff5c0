"""What runs on the machine: workloads as arrays, their generators and trace readers."""
