"""What one shows: runs or a comparison as one HTML page that needs no network (extra ``report``)."""
