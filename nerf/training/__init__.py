"""What a step consists of: schedule, objectives, losses, averaged weights, detection of divergence."""
