"""Where samples come from: folders, tables, webdataset shards, Hugging Face data sets, npm packages."""
