"""The command line: click, one file a command family. Its modules import nothing heavy before a command needs it."""
