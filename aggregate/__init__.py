"""What it all says: shards to tables to figures to report. No torch here."""
