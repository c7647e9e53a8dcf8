"""What users and the engine test with: drive, check_sink, assert_same_rows, conformance kits."""
