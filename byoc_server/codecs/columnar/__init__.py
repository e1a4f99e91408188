"""What Arrow and Parquet files hold: checked before pyarrow sees it, and made tensors of."""
