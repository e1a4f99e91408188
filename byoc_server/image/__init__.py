"""Programs for image builds, and the health check; each stands alone and imports nothing of the package."""
