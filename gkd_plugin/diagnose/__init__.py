"""What the command ``refilled diagnose`` looks at in a finished run, with pictures (extra ``report``)."""
