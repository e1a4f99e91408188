"""Protocol Buffers on the wire, and the flat records that RecordIO and TFRecord carry in them."""
