"""What every other part shares and what needs no torch: specification, schema, registry, errors."""
