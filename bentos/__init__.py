"""The BentoML services, one per task; `deploykit package` copies the one it needs, with the runtime, into the Bento."""
