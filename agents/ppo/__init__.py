"""The PPO scheduler: policy, training, storage."""
