"""SQL expressions over Arrow batches: checked when planning, run by one running projection."""
