"""The judgement of `doctor`: functions that take facts and return a finding, with its way out."""
