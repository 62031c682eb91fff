"""Who makes a job's shards: processes of this machine, or Ray."""
