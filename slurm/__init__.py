"""The cluster: profiles, resources, executor, ledger and queue. No tensors here."""
