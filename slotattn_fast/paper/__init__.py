"""The paper's experiments, run and reported beside what it published: `slotattn paper`."""
