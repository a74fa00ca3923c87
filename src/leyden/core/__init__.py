"""What every room uses: configuration, errors, files, locks, progress, devices. It exports no names of its own."""
