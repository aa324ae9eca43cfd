"""Where images come from: readers of the published data sets, and generators of look-alikes."""
