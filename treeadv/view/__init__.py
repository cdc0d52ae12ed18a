"""`treeadv view`: a local web page over the forests of a run, and the same page as a folder of files to share."""
