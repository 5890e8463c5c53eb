"""Several processes that share the weights of one model: the group, a rank's process, their messages."""
