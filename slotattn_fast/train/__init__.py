"""The paper's training pipelines: configuration, schedule, checkpoints, the loop, and one file for each task."""
