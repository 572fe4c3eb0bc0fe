"""What it all says: shards to coverage, tables, figures and a report."""
