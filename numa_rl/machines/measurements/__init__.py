"""Published measurements that predictions are compared with: a data file, each machine with its source."""
