"""The trainer: turns a run folder into a trained model. Started by the launcher, or by `accelerate launch -m trainer RUN`."""
