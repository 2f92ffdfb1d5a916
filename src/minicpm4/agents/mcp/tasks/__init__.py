"""A hundred tasks over twelve real servers: what is there before, what is to be done, what is true after."""
