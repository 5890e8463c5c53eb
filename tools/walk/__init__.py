"""Which files of a workspace are source worth searching: git's ignore rules, git's lists, and what a walk left out."""
