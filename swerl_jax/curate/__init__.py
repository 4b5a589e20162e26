"""From public history to training shards: fixes found in clones and archives, filtered, given context, written."""
