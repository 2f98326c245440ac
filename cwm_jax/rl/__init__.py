"""Reinforcement learning with verifiable rewards: environments, rollouts, the objective, the run."""
