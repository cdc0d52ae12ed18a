"""The web page of `treeadv view` over the forests of a run. A local server serves it, or a folder of files holds it."""
