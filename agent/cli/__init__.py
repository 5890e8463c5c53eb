"""The command `holdfast`: subcommands, options, exit codes, and what each light subcommand prints."""
