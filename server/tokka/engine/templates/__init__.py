"""Chat templates: which features one has, how it renders, and which marks only it may write."""
