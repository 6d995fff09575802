"""SeqIO registrations: import a module of this package and its tasks and mixtures are there."""
