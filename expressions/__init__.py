"""SQL expressions over Arrow batches: checked when planning, evaluated by one running projection."""
