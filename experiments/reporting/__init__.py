"""The report of one or several runs: what their metrics.jsonl say, as a page and a picture."""
