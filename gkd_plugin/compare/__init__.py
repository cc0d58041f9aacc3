"""``refilled compare``: methods × class spaces × seeds from one configuration, with honest statistics."""
