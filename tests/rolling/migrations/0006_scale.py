from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("rolling", "0005_widen")]
    operations = [
        migrations.AlterField(
            "Scaled", "price", models.DecimalField(max_digits=9, decimal_places=3)
        ),
        migrations.RunSQL("UPDATE rolling_scaled SET price = price + 0.125"),
    ]
