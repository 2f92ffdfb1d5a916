"""From requests to tokens: integers are scheduled, arrays are run, nothing handles both."""
