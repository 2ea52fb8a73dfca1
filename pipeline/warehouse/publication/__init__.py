"""The steps of a publication, one module each; `pipeline.warehouse.publish` says their order."""
