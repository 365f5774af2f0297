"""Files for `ray up`, one for each kind of cloud and one for machines of one's own; their check."""
