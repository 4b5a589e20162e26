"""Where examples come from: the records every module shares, shards, loaders, tasks made on this machine."""
