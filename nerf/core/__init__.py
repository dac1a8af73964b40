"""What everything else uses: records, cameras, shading, errors, files and images. Imports nothing of the other packages."""
