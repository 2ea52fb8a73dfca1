"""The steps of a publication, one module each; `pipeline.publication.publish` says their order."""
