"""Training: the world model, its losses, its learner process and the weights it publishes."""
