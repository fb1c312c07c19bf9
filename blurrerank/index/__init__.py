"""A gallery that is indexed once and answers probes as they come."""
